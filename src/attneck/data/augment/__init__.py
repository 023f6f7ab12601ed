"""Random changes of training images, each a function of its draws."""
