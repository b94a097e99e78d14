// Chats, messages, pictures, drafts and settings, in this browser's IndexedDB.

const NAME = "gemma3-int4-chat";

const opened = new Promise((resolve, reject) => {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => {
    const database = request.result;
    database.createObjectStore("chats", {keyPath: "id"});
    database.createObjectStore("messages", {keyPath: "id"}).createIndex("chat", "chat");
    database.createObjectStore("pictures", {keyPath: "id"}).createIndex("chat", "chat");
    database.createObjectStore("drafts", {keyPath: "chat"});
    database.createObjectStore("settings", {keyPath: "name"});
  };
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** What an IndexedDB request gives. */
export const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Runs `work` with the stores in one transaction, and returns what it returns once that is on the disk. */
export async function transact(names, mode, work) {
  const transaction = (await opened).transaction(names, mode);
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error("aborted"));
  });
  const stores = Object.fromEntries(names.map((name) => [name, transaction.objectStore(name)]));
  let value;
  try {
    value = await work(stores);
  } catch (error) {
    done.catch(() => {});
    try {
      transaction.abort();
    } catch {
      /* it had ended by itself */
    }
    throw error;
  }
  await done;
  return value;
}

export const read = (name, key) => transact([name], "readonly", (stores) => result(stores[name].get(key)));
export const readAll = (name) => transact([name], "readonly", (stores) => result(stores[name].getAll()));
export const write = (name, value) => transact([name], "readwrite", (stores) => result(stores[name].put(value)));
export const ofChat = (store, chat) => result(store.index("chat").getAll(chat));
