"""Adapters that let code written for other libraries call fastroute.

Each module needs the library it is named after and is the only one that imports it:

- `fastroute.integrations.requests`: an adapter to mount on a requests session.
- `fastroute.integrations.openai`: an HTTP client for the OpenAI SDK and what is built on it.
- `fastroute.integrations.flask`: an extension for Flask.
"""
