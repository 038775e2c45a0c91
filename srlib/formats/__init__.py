"""Files of every format that is read, each a stack of pages: kinds.py finds out which one a file is."""
