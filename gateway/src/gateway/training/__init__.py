"""/api/training: the training guide's routes for every kind of model."""
