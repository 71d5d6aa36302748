"""Hides torch from processes that train: users have none, and tensorboardX spends 5 s on it where there is one."""

raise ImportError("torch is not part of what a user installs")
