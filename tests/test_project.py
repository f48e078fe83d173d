"""What the project says about itself holds: layers, lock, image, manifests, README.

Tools that are no Python packages (kustomize, kubeconform) are looked for in `.tools/bin` and on the PATH.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from app.config import Settings

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = tuple(PYPROJECT["tool"]["importlinter"]["root_packages"])


def run(*command: str | Path, cwd: Path = ROOT, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **kwargs)


def tool(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(ROOT / ".tools" / "bin"), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed; .ci/run installs it into .tools/bin")
    return found


def tracked_files() -> list[Path]:
    listed = run("git", "ls-files", "-z") if shutil.which("git") else None
    if listed is None or listed.returncode:
        pytest.skip("not a git checkout: no list of tracked files")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# --- layers


def test_imports_go_down_only() -> None:
    linted = run(BIN / "lint-imports", "--no-cache", "--no-logo")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_an_import_that_goes_up_is_found(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "models" / "market.py").open("a") as market:
        market.write("\nimport adapters.exchanges.base\n")
    linted = run(BIN / "lint-imports", "--no-cache", "--no-logo", cwd=tmp_path)
    assert linted.returncode == 1
    assert "models.market -> adapters.exchanges.base" in linted.stdout


def test_every_module_of_app_has_its_layer() -> None:
    contract = PYPROJECT["tool"]["importlinter"]["contracts"][0]
    named = set(re.findall(r"app\.(\w+)", " ".join(contract["layers"])))
    there = {path.stem for path in (ROOT / "app").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - named == {"__init__"}, "name it in the contract's layers in pyproject.toml"


def test_the_packages_of_the_project_are_the_ones_that_are_checked() -> None:
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert there == set(PACKAGES) == set(PYPROJECT["tool"]["mypy"]["packages"])


def test_importing_the_packages_under_tests_stays_impossible() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


# --- lock


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = (line.removesuffix(" \\").split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): Version(version) for name, version in pinned}


def declared() -> list[Requirement]:
    return [Requirement(r) for r in PYPROJECT["project"]["dependencies"] + PYPROJECT["dependency-groups"]["dev"]]


def test_the_lock_satisfies_every_declared_dependency() -> None:
    pins = locked()
    unmet = [str(r) for r in declared() if not r.specifier.contains(pins[canonicalize_name(r.name)])]
    assert unmet == []


def test_the_lock_holds_what_is_needed_and_nothing_else() -> None:
    excluded = {canonicalize_name(name) for name in PYPROJECT["tool"]["uv"]["exclude-dependencies"]}
    needed: set[str] = set()
    waiting = declared()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = f"{name}[{','.join(sorted(requirement.extras))}]"
        if key in needed or name in excluded:
            continue
        needed.add(key)
        for line in importlib.metadata.requires(name) or []:
            child = Requirement(line)
            # The lock is made for Python 3.11, whichever Python runs this.
            python = {"python_version": "3.11", "python_full_version": "3.11.0"}
            asked = [{**python, "extra": extra} for extra in ("", *requirement.extras)]
            if child.marker is None or any(child.marker.evaluate(environment) for environment in asked):
                waiting.append(child)
    assert {key.partition("[")[0] for key in needed} == set(locked())


def test_every_pin_of_the_lock_has_hashes() -> None:
    blocks = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_the_environment_is_the_locked_one() -> None:
    differing = {name: pin for name, pin in locked().items() if Version(importlib.metadata.version(name)) != pin}
    assert differing == {}, "run `make setup`"


# --- what no tracked file may hold

FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.})\]$-])/(?:work|root|home|Users)/\w|/tmp/\w",
    "a package registry's host": (
        r"python[h]osted\.|py[p]i\.(?:org|io)|npm[j]s\.|(?:proxy|sum)\.go[l]ang|\.mav[e]n\.|crat[e]s\.io"
    ),
    "an exchange's host": r"(?:api|fapi|stream|data|testnet|www)[\w.-]*\.(?:binance|okx|bybit|kraken|coinbase)\.\w+",
    "a secret": r"BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in tracked_files()
        if path != Path(__file__) and path.name != "requirements.lock"
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_the_lock_names_no_host() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
    packages = json.loads((ROOT / "dashboard" / "package-lock.json").read_text())["packages"]
    assert [name for name, package in packages.items() if "resolved" in package] == []
    assert all("integrity" in package for name, package in packages.items() if name)


def test_no_tracked_file_is_a_pickle() -> None:
    assert [p for p in tracked_files() if p.suffix in {".pkl", ".pickle", ".pt", ".pth", ".joblib"}] == []


# --- image


def dockerfile_copies() -> list[str]:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    return [source for sources in copies for source in sources]


def test_the_dockerfile_passes_hadolint() -> None:
    linted = run(BIN / "hadolint", "Dockerfile")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_image_takes_every_package_but_the_benchmarks() -> None:
    built_on_the_way = {"dashboard"}
    folders = {source for source in dockerfile_copies() if (ROOT / source).is_dir()}
    assert folders == (set(PACKAGES) - {"bench"}) | built_on_the_way


def test_all_that_the_image_copies_exists_and_reaches_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / source).exists() for source in dockerfile_copies())
    assert set(dockerfile_copies()) == sent


def test_the_image_installs_uv_out_of_the_lock_as_make_setup_does() -> None:
    picks_uv = "'/^uv==/,/[^\\\\]$$/p'"
    assert picks_uv in (ROOT / "Makefile").read_text()
    assert picks_uv.replace("$$", "$") in (ROOT / "Dockerfile").read_text()
    picked = run("sed", "-n", picks_uv.replace("$$", "$").strip("'"), "requirements.lock").stdout.splitlines()
    assert picked[0].startswith("uv==")
    assert all(line.strip().startswith("--hash=") for line in picked[1:])


# --- manifests

BASE = ROOT / "k8s" / "base"


def manifests() -> dict[str, Any]:
    kustomization = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    read = [yaml.safe_load((BASE / name).read_text()) for name in kustomization["resources"]]
    return {"Kustomization": kustomization, **{manifest["kind"]: manifest for manifest in read}}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The newest schemas of the `kubernetes-validate` package, one file per kind, as kubeconform reads them."""
    version = max(kubernetes_validate.utils.all_versions(), key=Version)
    [source] = (Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema").glob(f"v{version}*-strict")
    folder = tmp_path_factory.mktemp("schemas")

    def read(name: str) -> dict[str, Any]:
        text = (source / f"{name}.json").read_text()
        return dict(json.loads(re.sub(r'"[\w/.]*#/\$defs/', '"#/definitions/', text)))

    definitions = read("_definitions")["$defs"]
    for name in ("configmap-v1", "deployment-apps-v1", "persistentvolumeclaim-v1", "service-v1"):
        (folder / f"{name}.json").write_text(json.dumps({**read(name), "definitions": definitions}))
    return f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


@pytest.fixture(scope="module")
def built() -> str:
    """The base as kustomize renders it."""
    rendered = run(tool("kustomize"), "build", BASE)
    assert rendered.returncode == 0, rendered.stderr
    return rendered.stdout


def conform(text: str, schemas: str) -> subprocess.CompletedProcess[str]:
    return run(tool("kubeconform"), "-strict", "-summary", "-schema-location", schemas, input=text)


def test_the_manifests_conform_to_kubernetes(built: str, schemas: str) -> None:
    checked = conform(built, schemas)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Valid: 4, Invalid: 0, Errors: 0, Skipped: 0" in checked.stdout


def test_a_misspelt_field_is_found(built: str, schemas: str) -> None:
    checked = conform(built.replace("readOnlyRootFilesystem:", "readOnlyRootFileSystem:"), schemas)
    assert checked.returncode != 0
    assert "'readOnlyRootFileSystem' not allowed" in checked.stdout + checked.stderr


def test_the_pod_runs_without_rights_and_within_limits() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert set(container["resources"]["requests"]) == set(container["resources"]["limits"]) == {"cpu", "memory"}


def test_the_log_has_one_owner_at_a_time() -> None:
    spec = manifests()["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")


def test_each_health_page_has_its_probe() -> None:
    [container] = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    asked = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert asked == {"/health/startup", "/health/ready", "/health/live"}


def test_image_and_manifests_agree_with_the_application() -> None:
    docker = (ROOT / "Dockerfile").read_text()
    spec = manifests()["Deployment"]["spec"]["template"]["spec"]
    [container] = spec["containers"]
    port = Settings.model_fields["web_port"].default
    user = spec["securityContext"]["runAsUser"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert f"EXPOSE {port}\n" in docker
    assert container["ports"][0]["containerPort"] == manifests()["Service"]["spec"]["ports"][0]["port"] == port
    assert f"USER {user}:{user}\n" in docker
    assert f"VOLUME {mounts['data']}\n" in docker
    assert json.dumps(container["args"]) in docker
    assert manifests()["Kustomization"]["images"][0]["newTag"] == PYPROJECT["project"]["version"]


def test_the_manifests_set_only_settings_that_exist() -> None:
    [container] = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    [generated] = manifests()["Kustomization"]["configMapGenerator"]
    values = dict(literal.split("=", 1) for literal in generated["literals"])
    names = {*values, *(variable["name"] for variable in container["env"])}
    assert names <= {name.upper() for name in Settings.model_fields}
    Settings(**{name.lower(): value for name, value in values.items()}, api_token="token")


# --- what README, Makefile and changelog claim


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_target_is_explained_by_make_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) == make_targets() == set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert all(f"make {target}" in run("make", "--no-print-directory", "help").stdout for target in make_targets())


def command_line() -> dict[str, set[str]]:
    """Each command of `python -m app` with its options; `kafka start` is one."""
    from app.cli import app  # late: it is the one part of the application that these tests run

    group: Any = typer.main.get_command(app)
    found = dict(group.commands)
    for name, command in group.commands.items():
        found |= {f"{name} {inner}": sub for inner, sub in getattr(command, "commands", {}).items()}
    return {name: {opt for param in command.params for opt in param.opts} for name, command in found.items()}


def test_every_command_that_make_runs_takes_what_make_hands_on() -> None:
    called = re.findall(r"-m app (\w+(?: \w+)?)(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {name for name, _ in called} == {"demo", "flow", "kafka start", "kafka stop", "live"}
    assert all(set(re.findall(r"--\w+", options)) <= command_line()[name] for name, options in called)


def test_make_demo_hands_its_settings_on() -> None:
    printed = run("make", "--no-print-directory", "-n", "demo", "DATA=a folder", "KEEP=1", "FRESH=1").stdout
    assert shlex.split(printed.splitlines()[-1])[3:] == ["demo", "--data", "a folder", "--keep", "--fresh"]


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"python -m app ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named <= set(command_line())


def test_every_make_target_of_the_readme_exists() -> None:
    named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named <= make_targets()


def test_every_file_that_the_readme_links_to_exists() -> None:
    linked = re.findall(r"\]\((?!\w+://|#)([^)#]+)", (ROOT / "README.md").read_text())
    assert [name for name in linked if not (ROOT / name).exists()] == []


def test_the_changelog_opens_with_the_version() -> None:
    [newest, *_] = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest == PYPROJECT["project"]["version"]


# --- skips


@pytest.mark.parametrize(
    ("ci", "reason", "outcome"),
    [
        ("", "chromium is not installed", "skipped"),
        ("true", "chromium is not installed", "failed"),
        ("true", "RECORDED_DATA is not set", "skipped"),
    ],
)
def test_in_ci_no_test_is_skipped_for_want_of_a_tool(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, reason: str, outcome: str
) -> None:
    monkeypatch.setenv("CI", ci)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(f"import pytest\ndef test_a():\n    pytest.skip({reason!r})\n")
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(**{outcome: 1})
    pytester.makepyfile(test_module=f"import pytest\npytest.skip({reason!r}, allow_module_level=True)\n")
    counted = pytester.runpytest_inprocess("-p", "no:cacheprovider", "test_module.py").parseoutcomes()
    assert counted == ({"errors": 1} if outcome == "failed" else {outcome: 1})
