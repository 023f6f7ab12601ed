"""What only a GPU can tell, part by part: each in a process of its own, in its time, written as it goes."""
