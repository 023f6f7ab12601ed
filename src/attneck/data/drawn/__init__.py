"""What the program draws by itself."""
