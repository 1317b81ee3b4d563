"""A versioned study of dropout: the library behind the pipeline in `dvc.yaml`."""
