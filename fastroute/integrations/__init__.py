"""Doors into fastroute for code that already speaks to something else.

Each module needs the library it is named after, which is imported when the module is, and by nothing else:

- `fastroute.integrations.requests`: an adapter to mount on a requests session.
- `fastroute.integrations.openai`: an HTTP client for the OpenAI SDK and what is built on it.
- `fastroute.integrations.flask`: an extension for Flask.
"""
