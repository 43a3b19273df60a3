// The harness inside node: runs one program, says when it begins, and how it ended.
//
// The program is a script, not a module: there a `return` before the tests does not compile, nor
// does another `console`, since a property of the global object that cannot be configured allows
// no declaration of its name. What the tests ask must not be the completion's to change.
(() => {
  const fs = require('fs'), vm = require('vm'), assert = require('assert'), real = require;
  const send = fs.writeSync, receive = fs.readSync, make = Buffer.alloc, exit = process.reallyExit;
  const [script] = process.argv.splice(1, 1);
  const source = fs.readFileSync(script, 'utf8');
  let complete = false, failed = false;

  const fail = (error) => {
    failed = true; // for good, should somebody catch it
    const out = /allocation failed|out of memory/i.test(String(error)) ? 'memory' : 'failed';
    try { send(3, out + '\n' + String(error).slice(0, 300)); } catch {}
  };
  const lock = (object, name, value) =>
    Object.defineProperty(object, name, { value, writable: false, configurable: false });

  lock(console, 'assert', (ok, ...rest) => {
    if (ok) return;
    failed = true;
    const error = new Error('console.assert failed ' + rest.join(' '));
    fail(error);
    throw error;
  });
  // What a module's cache or loader is made to give is not asked for these.
  const strict = Object.freeze(assert.strict);
  const kept = {
    __proto__: null, assert, 'node:assert': assert,
    'assert/strict': strict, 'node:assert/strict': strict,
  };
  Object.freeze(assert);
  lock(globalThis, 'require', Object.assign((name) => kept[name] ?? real(name), real));
  lock(globalThis, 'console', console);
  lock(globalThis, 'JSON', Object.freeze(JSON)); // tests compare what it writes
  globalThis.__filename = script;
  globalThis.__dirname = process.cwd();

  for (const event of ['uncaughtException', 'unhandledRejection']) {
    process.on(event, (error) => {
      fail(error);
      exit(1);
    });
  }
  // Comes when nothing is left to do, and not after process.exit() or an error.
  process.on('beforeExit', () => {
    if (!complete || failed) return;
    complete = false;
    const nonce = make(64);
    send(3, 'finished');
    send(3, nonce, 0, receive(3, nonce, 0, 64, null));
    exit(0);
  });
  send(3, 'started');
  vm.runInThisContext(source, {
    filename: script,
    importModuleDynamically: vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  });
  complete = true;
})();
