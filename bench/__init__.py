"""Speed and size of Rosetta, against its references on the same servers in the same run: `python -m bench`."""
