"""What is compared and how: the methods, the protocol for an image, the tables of a run, statistics over patients."""
