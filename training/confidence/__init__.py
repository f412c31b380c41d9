"""An out-of-distribution score for published classifiers: fitted, added to the graph, measured."""
