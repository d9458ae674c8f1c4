"""/openai/v1: models of tasks for programs that speak OpenAI's chat completions."""
