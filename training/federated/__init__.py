"""Federated training: clients train on images of their own, and a server averages their weights.

Runs in a virtual environment of its own (`make federated`), because Flower's pins conflict with ours. Nothing
else imports it, and only `flower` imports Flower.
"""
