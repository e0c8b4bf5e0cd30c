"""The chat page: a process of its own, without paddle, that speaks HTTP to any server of OpenAI's API."""
