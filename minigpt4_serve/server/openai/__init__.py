"""The wire types of the OpenAI API: requests as they are validated, responses as they are written."""
