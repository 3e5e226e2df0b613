"""SQL that users write, run in a child process that can reach nothing: no file, no network, no other database."""
