"""One script per stage of `dvc.yaml`; each reads settings, calls the library and writes its outputs."""
