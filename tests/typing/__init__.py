"""What the type checker looks at; see ``files`` of mypy in pyproject.toml."""
