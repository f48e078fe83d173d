// Small hands for the document. Text from the server becomes text nodes only, never markup.

export const $ = <T extends HTMLElement = HTMLElement>(id: string): T => {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
};

export function el<K extends keyof HTMLElementTagNameMap>(
  tag: K, props: Record<string, string> = {}, ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function put(node: Node, text: string): void {
  if (node.textContent !== text) node.textContent = text;
}

export function mark(node: HTMLElement, name: string, value: string): void {
  if (node.dataset[name] !== value) node.dataset[name] = value;
}

/** So many rows of so many cells, made once: what is shown changes, the rows stay. */
export function rows(body: HTMLElement, count: number, cells: number): HTMLTableCellElement[][] {
  return Array.from({ length: count }, () => {
    const row = el("tr");
    const made = Array.from({ length: cells }, () => el("td"));
    row.append(...made);
    body.append(row);
    return made;
  });
}

/** Call `draw` at the next frame, once, however often it is asked for. */
export function drawn(draw: () => void): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

/** A canvas as sharp as the screen; gives its size in CSS pixels. */
export function fitted(canvas: HTMLCanvasElement): { pen: CanvasRenderingContext2D; width: number; height: number } {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d") as CanvasRenderingContext2D;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}
