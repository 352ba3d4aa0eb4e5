"""Shared helpers of *Anatomy of Refusal*: notebooks call these modules and define nothing themselves.

Data flows one way: profiles -> prompts, models -> tracing -> behaviour, residual -> stats -> claims -> figures.
Nothing is imported here, so that a command that needs no tensor library starts fast.
"""
