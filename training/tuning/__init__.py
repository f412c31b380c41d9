"""The search for hyperparameters: spaces, studies, workers, reports. Only this wing imports Optuna."""
