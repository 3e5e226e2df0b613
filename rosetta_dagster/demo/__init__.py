"""The demo: a shop that is written to without pause, copied to two targets, watched and compared."""
