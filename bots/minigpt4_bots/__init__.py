"""Chat bots that forward people's pictures to an OpenAI-compatible vision server.

The core knows no platform: ``settings``, ``texts``, ``vision``, ``conversation``, ``markup``, ``streaming``,
``access``, ``privacy``, ``storage`` and ``answering``, which brings them together. ``telegram_*`` and ``discord_*``
know one platform each and call the core; the core never calls them except through the protocols in ``answering``.

An adapter's work: translate an incoming message into ``answering.Question``, implement ``answering.Outlet`` for one
place in a chat, and call ``Answering.ask``, ``stop``, ``regenerate``, ``reset`` and ``forget``. Everything else (who
may ask, what the model is sent, when to edit, how to split, what is said when something fails) is decided here, once.
"""
