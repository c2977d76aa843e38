"""Commands of the command line, by group. Each reads the spec, calls the library and prints what came of it."""
