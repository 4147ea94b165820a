-- The schema at revision 0015, as a database of that time has it.
CREATE TABLE adapter (
	id VARCHAR NOT NULL,
	job_id VARCHAR NOT NULL,
	model VARCHAR NOT NULL,
	mode VARCHAR DEFAULT 'lora' NOT NULL,
	parent VARCHAR,
	suffix VARCHAR,
	serving BOOLEAN NOT NULL,
	outcome VARCHAR(20) NOT NULL,
	held_out_loss_before FLOAT,
	held_out_loss_now FLOAT,
	sha256 VARCHAR,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (id),
	FOREIGN KEY(job_id) REFERENCES job (id)
);
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
CREATE TABLE app_token (
	name VARCHAR NOT NULL,
	digest VARCHAR NOT NULL,
	scopes JSON NOT NULL,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (name),
	UNIQUE (digest)
);
CREATE TABLE compact_step_log (
	job_id VARCHAR NOT NULL,
	steps INTEGER NOT NULL,
	data BLOB NOT NULL,
	PRIMARY KEY (job_id),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE deletion (
	id VARCHAR NOT NULL,
	at DATETIME NOT NULL,
	texts INTEGER NOT NULL,
	erased BOOLEAN NOT NULL,
	adapters JSON NOT NULL,
	replaced BOOLEAN NOT NULL,
	restarts JSON NOT NULL,
	job VARCHAR,
	PRIMARY KEY (id)
);
CREATE TABLE evaluation (
	job_id VARCHAR NOT NULL,
	step INTEGER NOT NULL,
	loss FLOAT NOT NULL,
	block_losses JSON NOT NULL,
	at DATETIME NOT NULL,
	PRIMARY KEY (job_id, step),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE event (
	id INTEGER NOT NULL,
	job_id VARCHAR NOT NULL,
	at DATETIME NOT NULL,
	kind VARCHAR NOT NULL,
	message VARCHAR NOT NULL,
	PRIMARY KEY (id),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE idle_window (
	id INTEGER NOT NULL,
	began_at DATETIME NOT NULL,
	ended_at DATETIME,
	PRIMARY KEY (id)
);
CREATE TABLE job (
	id VARCHAR NOT NULL,
	state VARCHAR(9) NOT NULL,
	reasons JSON NOT NULL,
	requested_by VARCHAR(9) NOT NULL,
	"immediate" BOOLEAN NOT NULL,
	paused_by_owner BOOLEAN DEFAULT 0 NOT NULL,
	model VARCHAR NOT NULL,
	method VARCHAR NOT NULL,
	mode VARCHAR DEFAULT 'lora' NOT NULL,
	seed INTEGER NOT NULL,
	settings JSON NOT NULL,
	total_steps INTEGER NOT NULL,
	predicted_bytes INTEGER,
	"plan" JSON,
	early_stopping JSON,
	texts INTEGER,
	words INTEGER,
	parent VARCHAR,
	start_from VARCHAR,
	compared_with VARCHAR,
	withdrawn BOOLEAN DEFAULT 0 NOT NULL,
	request_key VARCHAR,
	tuning JSON,
	adapter VARCHAR,
	outcome VARCHAR(20),
	error VARCHAR,
	starts INTEGER DEFAULT 0 NOT NULL,
	attempts INTEGER NOT NULL,
	not_before DATETIME,
	peak_memory_bytes INTEGER,
	created_at DATETIME NOT NULL,
	started_at DATETIME,
	finished_at DATETIME,
	PRIMARY KEY (id)
);
CREATE TABLE job_text (
	job_id VARCHAR NOT NULL,
	text_id VARCHAR NOT NULL,
	PRIMARY KEY (job_id, text_id),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE,
	FOREIGN KEY(text_id) REFERENCES text (id) ON DELETE CASCADE
);
CREATE VIRTUAL TABLE passage USING fts5(words, content='', tokenize='unicode61 remove_diacritics 2');
CREATE TABLE preference (
	"key" VARCHAR NOT NULL,
	value JSON NOT NULL,
	PRIMARY KEY ("key")
);
CREATE TABLE report (
	job_id VARCHAR NOT NULL,
	numbers JSON NOT NULL,
	content JSON,
	PRIMARY KEY (job_id),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE run_window (
	id INTEGER NOT NULL,
	job_id VARCHAR NOT NULL,
	began_at DATETIME NOT NULL,
	seen_at DATETIME NOT NULL,
	ended_at DATETIME,
	began_because VARCHAR NOT NULL,
	ended_because VARCHAR,
	cpu_seconds FLOAT NOT NULL,
	battery_began_percent FLOAT,
	battery_ended_percent FLOAT,
	battery_watt_hours FLOAT,
	hottest_battery_celsius FLOAT,
	hottest_zone_celsius FLOAT,
	PRIMARY KEY (id),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE sensor_sample (
	at DATETIME NOT NULL,
	battery FLOAT,
	temperature FLOAT,
	heat FLOAT,
	memory FLOAT,
	PRIMARY KEY (at)
);
CREATE TABLE step (
	job_id VARCHAR NOT NULL,
	step INTEGER NOT NULL,
	seed INTEGER NOT NULL,
	scalars JSON NOT NULL,
	loss FLOAT NOT NULL,
	learning_rate FLOAT NOT NULL,
	tokens INTEGER NOT NULL,
	seconds FLOAT NOT NULL,
	PRIMARY KEY (job_id, step),
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE text (
	id VARCHAR NOT NULL,
	source VARCHAR NOT NULL,
	text VARCHAR NOT NULL,
	completion VARCHAR,
	label VARCHAR,
	messages JSON,
	words INTEGER NOT NULL,
	held_out BOOLEAN NOT NULL,
	app VARCHAR,
	learned_in VARCHAR,
	created_at DATETIME NOT NULL,
	PRIMARY KEY (id)
);
CREATE TABLE uploaded_file (
	id VARCHAR NOT NULL,
	filename VARCHAR NOT NULL,
	purpose VARCHAR NOT NULL,
	size INTEGER NOT NULL,
	data BLOB NOT NULL,
	created_at DATETIME NOT NULL,
	expires_at DATETIME,
	PRIMARY KEY (id)
);
CREATE INDEX ix_adapter_model ON adapter (model);
CREATE INDEX ix_deletion_erased ON deletion (erased);
CREATE INDEX ix_event_job_id ON event (job_id);
CREATE INDEX ix_idle_window_ended_at ON idle_window (ended_at);
CREATE INDEX ix_job_created_at ON job (created_at);
CREATE UNIQUE INDEX ix_job_request_key ON job (request_key);
CREATE INDEX ix_job_state ON job (state);
CREATE INDEX ix_job_text_text_id ON job_text (text_id);
CREATE INDEX ix_run_window_began_at ON run_window (began_at);
CREATE INDEX ix_run_window_job_id ON run_window (job_id);
CREATE INDEX ix_text_app ON text (app);
CREATE INDEX ix_text_created_at ON text (created_at);
CREATE INDEX ix_text_learned_in ON text (learned_in);
CREATE INDEX ix_text_source ON text (source);
CREATE INDEX ix_uploaded_file_created_at ON uploaded_file (created_at);
CREATE UNIQUE INDEX one_serving_adapter_a_model ON adapter (model) WHERE serving;
INSERT INTO alembic_version VALUES ('0015');
