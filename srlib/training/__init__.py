"""Both stages of the training, each in one file, and the loop under them."""
