"""Linear layers whose weights stay quantized: on disk, in memory, and until the moment they are multiplied."""
