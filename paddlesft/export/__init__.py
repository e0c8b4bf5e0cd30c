"""Static graphs of models: written, and proved against the model in memory."""
