"""What lies in files: images, and what is said of them."""
