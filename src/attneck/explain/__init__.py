"""Pictures of what a run did and of what attention looks at."""
