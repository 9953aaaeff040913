"""The two components of a run that `standins` behaves as; nothing else imports Flower."""

import socket
import time

import standins
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    standins.serve(dict(context.run_config), ask(grid) if context.run_config["name"] == "asks" else [])


def ask(grid: Grid) -> list[int]:
    """Return the process ids of the workers of all nodes."""
    content = RecordDict({"question": ConfigRecord({"what": "pid"})})
    messages = [Message(content, node, MessageType.QUERY) for node in grid.get_node_ids()]
    waiting = set(grid.push_messages(messages))
    found = []
    while waiting:
        for answer in grid.pull_messages(list(waiting)):
            waiting.discard(answer.metadata.reply_to_message_id)
            found.append(int(answer.content.config_records["answer"]["pid"]))
        time.sleep(0.2)
    return found


@client.query()
def query(message: Message, context: Context) -> Message:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(context.node_config["socket"]))
        pid = int(connection.recv(100))
    return Message(RecordDict({"answer": ConfigRecord({"pid": pid})}), reply_to=message)
