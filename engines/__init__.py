"""The engines' environments: built from recipes, shared by all clones, used by the tests and the demo.

Standard library only. `python -m engines --help` from the top of a clone; from Python see `engines.launch`.
"""
