"""Models and samplers of other libraries. Each module needs the library it is about."""
