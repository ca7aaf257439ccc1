"""How good a model is: probes, bootstraps, published protocols, reports."""
