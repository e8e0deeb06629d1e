"""The study of all methods on the three embedded jobs: one sweep each, with settings in the YAML files here."""
