"""The routes: one module per resource, their schemas and their OpenAPI description."""
