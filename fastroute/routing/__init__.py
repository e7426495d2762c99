"""Who serves a request, and why: classifier, planner, plan."""
