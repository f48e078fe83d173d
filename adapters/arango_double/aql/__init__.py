"""A small, honest subset of AQL: what it does not know is a parse error (1501) or refused (9), never guessed."""
