"""Serving: the HTTP service in front of the engine, and the chat page."""
