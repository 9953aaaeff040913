"""The fast path of Llama-like models: hand-written passes over packed rows, the general path as their oracle."""
