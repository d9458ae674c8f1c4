"""Live generation: text from any checkpoint, token by token, with the models kept in processes of their own."""
