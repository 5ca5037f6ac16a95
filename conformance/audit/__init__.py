"""Mutation audit: does a check notice every small change of the code? Needs the extra `audit` (mutmut, libcst)."""
