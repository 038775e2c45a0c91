"""Beyond the paper: a generator that samples its texture from noise, its training, and what is asked of samples."""
