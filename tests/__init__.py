"""One file of tests per module; a package, so that no other installed `tests` is imported in its place."""
