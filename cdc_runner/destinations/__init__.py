"""Where changes go: one package a destination type, behind one protocol."""
