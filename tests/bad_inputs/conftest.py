collect_ignore_glob = ["*.py"]  # programs that tests/integration/test_bad_inputs.py runs
