"""Recipes shipped with the package: YAML files, loaded by name."""
