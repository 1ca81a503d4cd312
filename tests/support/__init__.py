"""Helpers of the tests. Which fake to use for what, the simplest first:

- `agentphone.sandbox.Sandbox`, by its `transport()`: how the SDK behaves against an API that is right.
- `tests.conftest`'s fixture `server`: the same behind a real socket, in a process of its own. `processes.sandbox` runs
  `agentphone sandbox` as a command.
- `helpers.client_of`, `helpers.Scripted`: the responses and exceptions of a script, in order, without a network.
  Samples of good JSON: `helpers.conversation`, `message`, `page`, `ok`.
- `canned.CannedTransport`: a large account, as fast as text can be built. For memory and size.
- `accounts`: sandboxes filled for exports, and the rows that their exports must have.
- `fault_server.serving`: a raw socket that fails in every way a network can: resets, silence, half responses, TLS.
- `listener.listening`: a plain HTTP server that records each request with its connection, and holds what is asked to be
  held. For connections across forks and processes.
- `proxy.proxying`: an HTTP proxy that records what it sees. `tests.sandbox.receiver`: a webhook receiver.
- `flaky_sandbox`: a sandbox that fails about every fifth request, in a process that can be killed.
- `model`: the API's lists and histories as pure functions of requests, for property tests of paginators.
- `clocks.jumping`: event loops whose clock jumps to the next event, so hours pass in no time.
"""
