"""The study of all methods on the three embedded jobs: a sweep for each, whose settings are the YAML files here."""
