"""How the model families are stored in Hugging Face directories: one small file per family, named by its row."""
