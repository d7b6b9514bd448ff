"""Discord and Telegram bots that answer questions about pictures with an OpenAI-compatible vision server.

* ``core`` imports no chat platform. It decides who may ask, what the model gets, when to edit a message, how to split
  an answer, and what people read when something fails.
* ``discord`` and ``telegram`` adapt one platform each: they turn an incoming message into a ``core.question.Question``,
  implement ``core.streaming.MessageTarget`` for one place in a chat, and call ``core.answer_service.AnswerService``.
"""
